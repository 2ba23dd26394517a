"""The order of the steps of a generation: submit, await, convert, store. No Flask request, no torch."""
