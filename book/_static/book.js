// Opened as a file, a page may not fetch other pages, from which the search takes its summaries: do without them.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
