"""The HTTP service: opens bundles and answers in the Jina format."""
