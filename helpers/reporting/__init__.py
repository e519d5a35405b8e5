"""Any model to a report: what applies is measured, kept, drawn and held against the claims (``make report``)."""
