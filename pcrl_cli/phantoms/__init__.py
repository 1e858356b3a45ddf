"""Made patients in the data sets' raw layouts: for `pcrl demo` and for tests."""
