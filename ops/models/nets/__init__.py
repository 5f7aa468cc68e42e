"""The networks themselves, on packed batches."""
