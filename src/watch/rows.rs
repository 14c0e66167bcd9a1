//! The queries on a watched table that read, lock and write a queued row.

use std::rc::Rc;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::cluster::assign::assign;
use crate::cluster::pending::join;
use crate::pg::error::{SqlResult, sql_error};
use crate::pg::owners_table::TableClient;
use crate::pg::spi::{get, spi};
use crate::pg::user_context::UserContext;
use crate::pg::vector::{self, Vector};
use crate::pg::vector_column::Storage;
use crate::watch::queue::Entry;
use crate::watch::setting::Watch;
use crate::watch::tags;

/// Maximum size of the files in memory, in bytes.
const BYTES: usize = 64 << 20;

/// A row as it was read, with the data of its entry.
pub struct Row {
    pub entry: Entry,
    pub image: Option<Vec<u8>>,
    pub text: Option<String>,
    /// The embedding of a row that only lacks a cluster or tags.
    pub embedding: Option<Vector>,
    /// Whether such a row has a cluster, or tags, which are kept.
    has_cluster: bool,
    has_tags: bool,
}

impl Row {
    pub fn lacks_cluster(&self, watch: &Watch) -> bool {
        watch.cluster.is_some() && !self.has_cluster
    }
}

/// Queries on a watched table.
pub struct Queries {
    read: String,
    there: String,
    lock: String,
    /// The table, and the condition for a row's key.
    table: String,
    key: String,
    embedding: String,
    cluster: Option<String>,
    tags: Option<String>,
    storage: Storage,
}

impl Queries {
    pub fn new(watch: &Watch) -> SqlResult<Self> {
        let _user_context = UserContext::of_caller();
        Spi::connect_mut(|client| {
            // The operator of the unique index on the key, in any schema.
            let query = include_str!("sql/key_operators.sql");
            let rows = client.update(query, None, &[watch.relation.into(), watch.key.clone().into()]).map_err(spi)?;
            let equal = rows
                .into_iter()
                .map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default()))
                .collect::<SqlResult<Vec<_>>>()?;
            if equal.len() != watch.key.len() {
                return Err(key_changed(watch));
            }
            let key = equal.join(" AND ");
            let column = |name: &Option<String>| name.as_deref().map(quote_identifier);
            // The column's type may be a domain.
            let or_null =
                |name: &Option<String>, kind: &str| format!("{}::{kind}", column(name).as_deref().unwrap_or("NULL"));
            let Watch { table, .. } = watch;
            let embedding = quote_identifier(&watch.embedding);
            // If the column's type is no longer suitable, writing reports this.
            let query = "SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped";
            let kind = client
                .update(query, Some(1), &[watch.relation.into(), watch.embedding.as_str().into()])
                .map_err(spi)?;
            let kind = kind.into_iter().next().map(|row| get::<pg_sys::Oid>(&row, 1)).transpose()?.flatten();
            let storage = kind.and_then(Storage::of).unwrap_or(Storage::Vector);
            let (cluster, tags) = (column(&watch.cluster), column(&watch.tags));
            // The condition for a row that needs work: it has to be embedded, or only grouped or tagged.
            let kept: Vec<&str> =
                [Some(&embedding), cluster.as_ref(), tags.as_ref()].into_iter().flatten().map(String::as_str).collect();
            let open = format!("({} IS NULL)", kept.join(" IS NULL OR "));
            let has = |column: &Option<String>| {
                column.as_ref().map_or("false".to_owned(), |column| format!("{column} IS NOT NULL"))
            };
            let same: Vec<String> = [(&watch.image, 2), (&watch.text, 3)]
                .into_iter()
                .filter_map(|(name, n)| {
                    // Compares bytes: two texts that a collation considers equal have different embeddings.
                    let (kind, bytes) = if n == 2 { ("bytea", "") } else { ("text", " COLLATE pg_catalog.\"C\"") };
                    Some(format!("{}::{kind}{bytes} IS NOT DISTINCT FROM ${n}::{kind}{bytes}", column(name)?))
                })
                .collect();
            let there = format!("SELECT 1 FROM {table} WHERE {key} AND ($4 OR {open}) AND {}", same.join(" AND "));
            Ok(Self {
                read: format!(
                    "SELECT {}, {}, {embedding}::{}.vector, {}, {} FROM {table} WHERE {key} AND ($2 OR {open} AND ({}))",
                    or_null(&watch.image, "bytea"),
                    or_null(&watch.text, "text"),
                    vector::schema(),
                    has(&cluster),
                    has(&tags),
                    watch.has_source()
                ),
                lock: format!("{there} FOR NO KEY UPDATE SKIP LOCKED"),
                there,
                table: table.clone(),
                key,
                embedding,
                cluster,
                tags,
                storage,
            })
        })
    }

    /// Reads rows until their files total 64 MB; returns the number of examined entries, and the rows among them that
    /// need work.
    pub fn read(&self, watch: &Watch, entries: &[Entry]) -> SqlResult<(usize, Vec<Row>)> {
        watch.as_owner(|client| {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for (index, entry) in entries.iter().enumerate() {
                pgrx::check_for_interrupts!();
                let arguments = [entry.key.as_str().into(), entry.again.into()];
                let found = client.update(&self.read, Some(1), &arguments)?;
                if let Some(row) = found.into_iter().next() {
                    let embedding: Option<Vector> = if entry.again { None } else { get(&row, 3)? };
                    let keeps = |column| Ok::<_, ErrorReport>(embedding.is_some() && get(&row, column)? == Some(true));
                    let row = Row {
                        entry: entry.clone(),
                        image: get(&row, 1)?,
                        text: get(&row, 2)?,
                        has_cluster: keeps(4)?,
                        has_tags: keeps(5)?,
                        embedding,
                    };
                    bytes += row.image.as_ref().map_or(0, Vec::len) + row.text.as_ref().map_or(0, String::len);
                    rows.push(row);
                }
                if bytes >= BYTES {
                    return Ok((index + 1, rows));
                }
            }
            Ok((entries.len(), rows))
        })
    }

    /// Locks a row until the end of the transaction, if it is unchanged since it was read and no other session has
    /// locked it.
    pub fn lock(&self, client: &mut TableClient<'_, '_>, row: &Row) -> SqlResult<Locked> {
        let source = [
            row.entry.key.as_str().into(),
            row.image.as_deref().into(),
            row.text.as_deref().into(),
            row.entry.again.into(),
        ];
        if !client.update(&self.lock, Some(1), &source)?.is_empty() {
            return Ok(Locked::Here);
        }
        let there = !client.update(&self.there, Some(1), &source)?.is_empty();
        Ok(if there { Locked::Elsewhere } else { Locked::Superseded })
    }

    /// Writes a row's embedding, or NULL, if the row still has the embedded source.
    pub fn write(
        &self,
        client: &mut TableClient<'_, '_>,
        watch: &Watch,
        row: &Row,
        vector: Option<&Vector>,
    ) -> SqlResult<Written> {
        let key = row.entry.key.as_str();
        match self.lock(client, row)? {
            Locked::Here => {}
            Locked::Elsewhere => return Ok(Written::Locked),
            Locked::Superseded => return Ok(Written::Superseded),
        }
        let vector = vector.map(|vector| self.storage.round(vector.clone()));
        let tags = match &vector {
            Some(vector) if self.tags.is_some() && !row.has_tags => Some(tags::of(&watch.model, &vector.0)?),
            _ => None,
        };
        let cluster = match (&watch.collection, &vector) {
            _ if self.cluster.is_none() || row.has_cluster => None,
            // Such a row may be in a group already. The trigger then confirms the new membership, and takes the row out
            // of its old group.
            (Some(collection), Some(vector)) if row.entry.again => {
                Some(join(&Rc::from(collection.as_str()), &vector.0, watch.owner)?)
            }
            (Some(collection), Some(vector)) => Some(assign(vector.clone(), collection, watch.owner)?),
            _ => None,
        };
        let (mut columns, mut arguments) = (vec![&self.embedding], vec![key.into(), vector.into()]);
        if let Some(column) = self.cluster.as_ref().filter(|_| !row.has_cluster) {
            columns.push(column);
            arguments.push(cluster.into());
        }
        if let Some(column) = self.tags.as_ref().filter(|_| !row.has_tags) {
            columns.push(column);
            arguments.push(tags.into());
        }
        let set: Vec<String> = (2..).zip(columns).map(|(number, column)| format!("{column} = ${number}")).collect();
        let query = format!("UPDATE {} SET {} WHERE {}", self.table, set.join(", "), self.key);
        let done = client.update(&query, None, &arguments)?.len();
        if done != 1 {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                "the row could not be updated",
            )
            .set_detail(format!("A trigger or a rule on {} keeps it from that.", watch.name())));
        }
        Ok(Written::Done)
    }
}

fn key_changed(watch: &Watch) -> ErrorReport {
    sql_error(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("the key ({}) of {} has changed", watch.key.join(", "), watch.name()),
    )
    .set_hint("Call clip_watch again, with the same arguments.")
}

/// The result of locking a row.
pub enum Locked {
    Here,
    /// Another session has locked it.
    Elsewhere,
    /// It was deleted, or has another source, which has its own entry.
    Superseded,
}

pub enum Written {
    Done,
    /// Another session has locked the row.
    Locked,
    /// It was deleted, or has another source, which has its own entry.
    Superseded,
}
