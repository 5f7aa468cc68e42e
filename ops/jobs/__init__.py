"""Rows become rows: kept as they are done, gone on with after a kill, put out in the order they came in."""
