"""What a run leaves behind and says: the record, the console, figures and tables."""
