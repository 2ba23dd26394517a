"""Tasks that Celery workers run on other machines. The store is the source of truth; messages only wake workers."""
