// Before anything is painted: the colours that the reader chose last time. Without a choice, the system's.
try {
  const theme = localStorage.getItem("moe-lab-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* a browser that stores nothing for files */ }
