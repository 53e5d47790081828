"""See and question attention: in a terminal, in figures, in numbers."""
