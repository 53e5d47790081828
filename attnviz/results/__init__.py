"""What a command finds out, one file a question: the numbers as tables, a document and rows."""
