"""Manifests: what people want, as YAML."""
