"""The report: pages that compare runs, and what they draw; `selfalign inspect` draws with the same pens."""
