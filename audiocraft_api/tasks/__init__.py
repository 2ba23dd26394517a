"""Durable tasks: accepted work is stored before it is acknowledged, and every task reaches exactly one final state."""
