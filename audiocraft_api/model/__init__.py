"""Models: catalog, loading and caching. The only package that imports audiocraft."""
