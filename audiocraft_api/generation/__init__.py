"""The steps of a generation: submit, await, convert, store. Used by every endpoint and by tasks."""
