"""Measurements that the README quotes: `make bench`. A benchmark, not a test: it prints figures and does not judge
them."""
