/** The theme that was chosen here, before anything is painted. A classic script: modules wait for the whole page. */
try {
	const theme = localStorage.getItem("flux theme");
	if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
	// Storage is off: the system's theme.
}
