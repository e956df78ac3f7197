"""Models outside the catalog, made by transformers, baked and compared with it: python -m tests.exporter."""
