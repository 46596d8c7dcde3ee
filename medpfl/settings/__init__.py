"""From configurations to parts: names, types, ranges and kinds, checked as they are declared."""
