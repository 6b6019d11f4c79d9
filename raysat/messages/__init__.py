"""Messages to a person: errors as text, without credentials, on a terminal that may have gone."""
