"""Durable tasks: rows that outlive the process, the stores that keep them and the worker that works them."""
