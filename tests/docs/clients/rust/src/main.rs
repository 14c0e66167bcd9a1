//! What every client's program does (../../README.md). The variable PAGE names the file with the example.

include!(env!("PAGE"));

fn show(fields: &[&str]) {
    let fields: Vec<String> =
        fields.iter().map(|field| field.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    println!("{}", fields.join("\t"));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let env = |name: &str| std::env::var(name);
    let (host, port, user, database) = (env("PGHOST")?, env("PGPORT")?, env("PGUSER")?, env("PGDATABASE")?);
    let config = format!("host={host} port={port} user={user} dbname={database}");
    let (db, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let folder = std::env::args().nth(1).ok_or("no folder of photos")?;
    let photo = |name: &str| std::fs::read(format!("{folder}/{name}.jpg"));
    for name in ["cat", "cat-cropped", "rocket", "dahlia"] {
        show(&["added", &add(&db, name, &photo(name)?).await?.unwrap_or_default()]);
    }
    show(&["bad", &add(&db, "notes", b"not an image").await?.unwrap_or_default()]);
    let svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>";
    show(&["unsupported", &add(&db, "drawing", svg).await?.unwrap_or_default()]);
    if let Err(error) = add(&db, "forbidden", &photo("cat")?).await {
        show(&["other", error.code().map_or("", SqlState::code)]);
    }
    for row in search(&db, "a rocket on its way to space", 2).await? {
        show(&["found", row.get("title")]);
    }
    for row in similar(&db, &photo("cat-mirrored")?, 1).await? {
        show(&["similar", row.get("title")]);
    }
    for row in groups(&db).await? {
        show(&["group", &row.get::<_, i64>("size").to_string(), row.get("title")]);
    }
    Ok(())
}
