"""Checkpoints: what there is, loading, leasing. The only importer of audiocraft, and only when a model loads."""
