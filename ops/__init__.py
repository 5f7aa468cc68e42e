"""The work: every op of qwench, without a word of terminal talk."""
