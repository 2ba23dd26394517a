"""Tasks that Celery workers run on other machines. The task store stays the source of truth; Celery only wakes workers."""
