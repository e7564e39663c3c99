"""The evidence on the article: measurements, claims, the report, and the comparison with the committed results."""
