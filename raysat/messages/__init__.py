"""What a person is told: errors as text, without credentials, on a terminal that may have gone."""
