"""The behavioural gate: make both models answer, judge the answers, compare them."""
