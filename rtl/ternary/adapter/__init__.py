"""Low-rank adapters beside the read-only weights: memory that the host loads, and the path of their sums. docs/adapters.md."""
