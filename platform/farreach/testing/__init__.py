"""What users can test their own additions with: conformance suites, several workers."""
