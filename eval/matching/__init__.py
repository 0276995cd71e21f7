"""Which regions the words of a caption match, and which concepts both are assigned to."""
