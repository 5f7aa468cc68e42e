"""The words: flags, tables, messages of the qwench command."""
