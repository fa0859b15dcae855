"""Convert the columns of a row to a preference pair."""
