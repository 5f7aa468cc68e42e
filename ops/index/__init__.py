"""Floor: vectors on disk (LanceDB tables and plain files), with the fingerprint of how they were made."""
