"""The results of commands, one file a question: the numbers as tables, a document and rows."""
