"""Plain data and protocols that every package shares: errors, parameters, requests, results. Imports no other package of ours but `config`."""
