"""Plain data and protocols that every package uses: errors, parameters, requests, results. Imports no other package."""
