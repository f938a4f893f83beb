"""The paper's figures from recorded CSVs: `lineup` says what stands in each, `command` draws one."""
