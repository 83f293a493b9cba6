//! The pages themselves, the same for every atlas.

/// Names and contents.
pub(super) const FILES: [(&str, &str); 4] = [
    ("index.html", include_str!("site/index.html")),
    ("style.css", include_str!("site/style.css")),
    ("app.js", include_str!("site/app.js")),
    ("start.js", include_str!("site/start.js")),
];
