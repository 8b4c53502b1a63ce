"""One self-contained HTML page that says what became of a run or a search. No torch."""
