"""Networks: building by name, replacing convolutions, loading weights, exporting."""
