"""Tests of the converter and the service."""
