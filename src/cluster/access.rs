//! Privileges on collections: the owner may do everything, other roles need grants.
//!
//! A collection whose members are in a table always belongs to that table's current owner, so ALTER TABLE … OWNER TO
//! and REASSIGN OWNED also change the collection's owner. The owner of any other collection has a row with privilege
//! `owner` in clip_search.collection_grant. Several transactions may each write such a row for a new collection,
//! because a unique row would make them wait for each other. Privileges are checked before any lock on the collection
//! is taken, so a role without privileges can't block other sessions.

use std::ffi::CStr;

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_literal};

use crate::cluster::columns::{grant, setting, sum};
use crate::cluster::tables::{Condition, Index, Snapshot, Store};
use crate::pg::error::{SqlResult, given, report, sql_error};
use crate::pg::spi::spi;
use crate::pg::text::Text;
use crate::pg::user_context::{
    UserContext, current_role, database_owner, has_rights_of, owner_of_table, role_exists, role_name,
};

pub const DEFAULT_COLLECTION: &str = "default";

pub fn check_name(collection: &str) -> SqlResult<()> {
    // The limit of PostgreSQL's own names. Every row contains the name, and codes are stored in full pages.
    const LONGEST: usize = 63;
    let bad = |message: String, detail: String| Err(report(Error::new(Kind::InvalidInput, message).detail(detail)));
    match collection.len() {
        0 => bad("collection name is empty".to_owned(), "A name has 1 to 63 bytes.".to_owned()),
        1..=LONGEST => Ok(()),
        long => bad("collection name is too long".to_owned(), format!("It has {long} bytes; {LONGEST} are allowed.")),
    }
}

/// The prefix of the names of clip_reembed's own collections. It is reserved: otherwise a role could create these
/// predictable names first and block every owner's clip_reembed.
pub const REEMBED_PREFIX: &str = "clip_reembed_";

pub fn unknown(collection: &str) -> ErrorReport {
    sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("collection \"{collection}\" does not exist"))
        .set_hint("SELECT name FROM clip_search.collection lists those there are.")
}

/// The privileges that can be granted to a role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// See the clusters, and reports about them.
    Select,
    /// Join and leave clusters.
    Assign,
    Recluster,
}

impl Privilege {
    const ALL: [Self; 3] = [Self::Select, Self::Assign, Self::Recluster];

    fn name(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::Assign => "assign",
            Self::Recluster => "recluster",
        }
    }

    fn parse(text: &str) -> SqlResult<Vec<Self>> {
        if text.eq_ignore_ascii_case("all") {
            return Ok(Self::ALL.to_vec());
        }
        match Self::ALL.into_iter().find(|privilege| text.eq_ignore_ascii_case(privilege.name())) {
            Some(privilege) => Ok(vec![privilege]),
            None => Err(sql_error(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("unrecognized privilege type: \"{text}\""),
            )
            .set_hint("Use 'select', 'assign', 'recluster' or 'all'.")),
        }
    }
}

/// A collection's owners and grants, committed or written by this transaction.
pub struct Access {
    name: String,
    /// The owner of the members' table.
    owner_of_members: Option<pg_sys::Oid>,
    has_settings: bool,
    /// Roles with an owner's grant: several if several transactions have created the collection by an assignment.
    founders: Vec<pg_sys::Oid>,
    /// The owners in rows of other transactions that are creating the collection and have not ended yet.
    pending: Vec<pg_sys::Oid>,
    /// 0 for PUBLIC.
    grants: Vec<(pg_sys::Oid, String)>,
    has_clusters: bool,
    /// Whether the extension's objects are those of 0.2.0, which had no owners: every role may do everything, until
    /// ALTER EXTENSION … UPDATE.
    outdated: bool,
}

impl Access {
    pub fn find(store: &Store, name: &str) -> Self {
        let mut access = Self {
            name: name.to_owned(),
            owner_of_members: None,
            has_settings: false,
            founders: Vec::new(),
            pending: Vec::new(),
            grants: Vec::new(),
            has_clusters: false,
            outdated: store.is_outdated(),
        };
        let by_name = [Condition::TextIs(setting::NAME, name)];
        store.scan(Snapshot::Latest, Index::SettingName, &by_name, |row| {
            access.has_settings = true;
            access.owner_of_members = row.oid(setting::MEMBERS).and_then(owner_of_table);
            false
        });
        if !access.has_settings {
            store.scan(Snapshot::Dirty, Index::SettingName, &by_name, |row| {
                if row.inserting {
                    access.pending.extend(row.oid(setting::MEMBERS).and_then(owner_of_table));
                }
                true
            });
            store.scan(Snapshot::Dirty, Index::SumCollection, &[Condition::TextIs(sum::COLLECTION, name)], |_| {
                access.has_clusters = true;
                false
            });
        }
        let by_name = [Condition::TextIs(grant::COLLECTION, name)];
        // After the clusters: the owner of a new collection is written before its first cluster.
        store.scan(Snapshot::Dirty, Index::GrantCollection, &by_name, |row| {
            let (Some(role), Some(privilege)) = (row.oid(grant::GRANTEE), row.text(grant::PRIVILEGE)) else {
                return true;
            };
            match (privilege.as_str(), row.inserting) {
                ("owner", true) => access.pending.push(role),
                ("owner", false) => access.founders.push(role),
                (_, true) => {}
                (_, false) => access.grants.push((role, privilege)),
            }
            true
        });
        // A dirty scan may miss a row that is being replaced.
        if access.founders.is_empty() && access.has_settings && access.owner_of_members.is_none() {
            store.scan(Snapshot::Latest, Index::GrantCollection, &by_name, |row| {
                access
                    .founders
                    .extend(row.oid(grant::GRANTEE).filter(|_| row.text(grant::PRIVILEGE).as_deref() == Some("owner")));
                true
            });
        }
        access
    }

    /// Whether a collection of this name has settings, owners or grants.
    pub fn exists(&self) -> bool {
        self.has_settings || self.has_clusters || !self.founders.is_empty()
    }

    /// Refuses to create a collection under a reserved name.
    ///
    /// # Errors
    /// 42939 if the name is reserved. A collection that has had the name since before 0.3.0 stays usable.
    pub fn check_not_reserved(&self) -> SqlResult<()> {
        if self.exists() || !self.name.starts_with(REEMBED_PREFIX) {
            return Ok(());
        }
        Err(sql_error(PgSqlErrorCode::ERRCODE_RESERVED_NAME, format!("collection name \"{}\" is reserved", self.name))
            .set_detail(format!("Names that begin with \"{REEMBED_PREFIX}\" are those of clip_reembed."))
            .set_hint("Use another name for the collection."))
    }

    /// # Errors
    /// 55000 if the extension's objects come from 0.2.0.
    pub fn check_current(&self) -> SqlResult<()> {
        if !self.outdated {
            return Ok(());
        }
        Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the objects of extension clip_search are those of an earlier version",
        )
        .set_hint("ALTER EXTENSION clip_search UPDATE;"))
    }

    /// Whether the extension's objects come from 0.2.0.
    pub fn is_outdated(&self) -> bool {
        self.outdated
    }

    pub fn has_settings(&self) -> bool {
        self.has_settings
    }

    /// Whether the collection is `default` without settings or grants, which is open to PUBLIC.
    fn is_open_default(&self) -> bool {
        self.name == DEFAULT_COLLECTION && !self.has_settings && self.founders.is_empty() && self.grants.is_empty()
    }

    /// Whether every role may assign.
    pub fn is_public(&self) -> bool {
        self.is_open_default()
            || self
                .grants
                .iter()
                .any(|(role, granted)| *role == pg_sys::InvalidOid && granted == Privilege::Assign.name())
    }

    /// The owner; the owner of the database if the collection has none, or if its owner's role was dropped.
    pub fn owner(&self) -> pg_sys::Oid {
        let named = self.owner_of_members.or_else(|| self.founders.first().copied());
        named.filter(|&role| role_exists(role)).unwrap_or_else(database_owner)
    }

    pub fn is_owned_by(&self, role: pg_sys::Oid) -> bool {
        self.outdated
            || has_rights_of(role, self.owner())
            || (!self.has_settings && self.founders.iter().any(|&owner| has_rights_of(role, owner)))
    }

    pub fn allows(&self, role: pg_sys::Oid, privilege: Privilege) -> bool {
        self.is_owned_by(role)
            || self.is_open_default()
            || self.grants.iter().any(|(grantee, granted)| {
                granted == privilege.name() && (*grantee == pg_sys::InvalidOid || has_rights_of(role, *grantee))
            })
            // The owner of the database dumps every collection, and so reads it.
            || (privilege == Privilege::Select && has_rights_of(role, database_owner()))
    }

    /// Whether the role has no privilege on the collection, not even to see it.
    pub fn has_none(&self, role: pg_sys::Oid) -> bool {
        !Privilege::ALL.into_iter().any(|privilege| self.allows(role, privilege))
    }

    /// # Errors
    /// 42501 if the role lacks the privilege.
    pub fn check(&self, role: pg_sys::Oid, privilege: Privilege) -> SqlResult<()> {
        if self.allows(role, privilege) {
            return Ok(());
        }
        Err(self.denied(&format!("Role {} needs privilege {} on it.", role_name(role), privilege.name())).set_hint(
            format!(
                "Its owner, {}, grants it: SELECT clip_grant_collection({}, {}, '{}');",
                role_name(self.owner()),
                quote_literal(&self.name),
                quote_literal(role_name(role)),
                privilege.name()
            ),
        ))
    }

    /// # Errors
    /// 42501 if the role may not assign: the collection belongs to other roles, or they are creating it at present.
    pub fn check_assign(&self, role: pg_sys::Oid) -> SqlResult<()> {
        self.check_not_being_created(role)?;
        match self.is_settled() || (self.has_clusters && self.pending.is_empty()) {
            true => self.check(role, Privilege::Assign),
            false => Ok(()),
        }
    }

    /// Whether the owner is certain, regardless of other transactions.
    fn is_settled(&self) -> bool {
        self.has_settings || !self.founders.is_empty() || self.is_open_default()
    }

    /// # Errors
    /// 42501 if another role's open transaction is creating the collection: the caller would wait for its end.
    pub fn check_not_being_created(&self, role: pg_sys::Oid) -> SqlResult<()> {
        match self.pending.iter().find(|&&owner| !has_rights_of(role, owner)) {
            Some(&owner) if !self.is_settled() => {
                Err(self.denied(&format!("Role {} is just now making it.", role_name(owner))))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// 42501 if the role is neither the owner nor a member of it.
    pub fn check_owner(&self, role: pg_sys::Oid) -> SqlResult<()> {
        if self.is_owned_by(role) {
            return Ok(());
        }
        Err(sql_error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("must be owner of collection \"{}\"", self.name),
        )
        .set_detail(format!("It belongs to {}.", role_name(self.owner()))))
    }

    fn denied(&self, detail: &str) -> ErrorReport {
        sql_error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for collection \"{}\"", self.name),
        )
        .set_detail(detail)
    }

    /// Whether the assignment that follows makes the role an owner. This transaction writes its own row even if another
    /// transaction has an uncommitted row, because the other may be rolled back.
    pub fn wants_owner(&self) -> bool {
        let owned = self.outdated || self.has_settings || !self.founders.is_empty() || self.name == DEFAULT_COLLECTION;
        !owned && (!self.has_clusters || !self.pending.is_empty())
    }

    /// Writes the implicit privileges on the collection: the owner of `default`, and the grants to PUBLIC.
    fn write_defaults(&self, client: &mut SpiClient<'_>) -> SqlResult<()> {
        if self.is_open_default() {
            add_owner(client, &self.name, self.owner())?;
            add_grants(client, &self.name, pg_sys::InvalidOid, &Privilege::ALL)?;
        }
        Ok(())
    }

    /// Records the owner of a collection whose settings have just been written. `has_members`: the members' table
    /// determines the owner. The grants of a former owner are dropped.
    pub fn settle_owner(&self, client: &mut SpiClient<'_>, owner: pg_sys::Oid, has_members: bool) -> SqlResult<()> {
        if self.outdated {
            return Ok(());
        }
        self.write_defaults(client)?;
        if (self.exists() || self.is_open_default()) && self.owner() != owner {
            let query = "DELETE FROM clip_search.collection_grant WHERE collection = $1";
            client.update(query, None, &[self.name.as_str().into()]).map(drop).map_err(spi)?;
        }
        if has_members { forget_owners(client, &self.name) } else { replace_owners(client, &self.name, owner) }
    }
}

fn forget_owners(client: &mut SpiClient<'_>, collection: &str) -> SqlResult<()> {
    let query = "DELETE FROM clip_search.collection_grant WHERE collection = $1 AND privilege = 'owner'";
    client.update(query, None, &[collection.into()]).map(drop).map_err(spi)
}

/// Makes a role the only owner of a collection without a members' table.
pub fn replace_owners(client: &mut SpiClient<'_>, collection: &str, role: pg_sys::Oid) -> SqlResult<()> {
    forget_owners(client, collection)?;
    add_owner(client, collection, role)
}

/// Makes a role an owner of a collection.
pub fn add_owner(client: &mut SpiClient<'_>, collection: &str, role: pg_sys::Oid) -> SqlResult<()> {
    let query = "INSERT INTO clip_search.collection_grant (collection, grantee, privilege) VALUES ($1, $2, 'owner')";
    client.update(query, None, &[collection.into(), role.into()]).map(drop).map_err(spi)
}

fn add_grants(
    client: &mut SpiClient<'_>,
    collection: &str,
    role: pg_sys::Oid,
    privileges: &[Privilege],
) -> SqlResult<()> {
    client
        .update(include_str!("sql/grant.sql"), None, &[collection.into(), number(role), names(privileges).into()])
        .map(drop)
        .map_err(spi)
}

/// The role as an argument: pgrx would pass the oid 0 (PUBLIC) as NULL.
fn number<'a>(role: pg_sys::Oid) -> DatumWithOid<'a> {
    i64::from(role.to_u32()).into()
}

fn names(privileges: &[Privilege]) -> Vec<String> {
    privileges.iter().map(|privilege| privilege.name().to_owned()).collect()
}

/// The role with this name; 0 for PUBLIC.
fn grantee(name: &str) -> SqlResult<pg_sys::Oid> {
    if name.eq_ignore_ascii_case("public") { Ok(pg_sys::InvalidOid) } else { role_named(name) }
}

pub fn role_named(name: &str) -> SqlResult<pg_sys::Oid> {
    let query = "SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1";
    let found = Spi::connect(|client| {
        let rows = client.select(query, Some(1), &[name.into()]).map_err(spi)?;
        rows.into_iter().next().map(|row| row.get::<pg_sys::Oid>(1).map_err(spi)).transpose()
    })?;
    found
        .flatten()
        .ok_or_else(|| sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("role \"{name}\" does not exist")))
}

/// The collection, which the calling role must own.
pub fn own_collection(store: &Store, collection: &str) -> SqlResult<Access> {
    check_name(collection)?;
    let access = Access::find(store, collection);
    if !access.exists() && !access.is_open_default() {
        return Err(unknown(collection));
    }
    access.check_owner(current_role())?;
    Ok(access)
}

/// Runs a statement on clip_search.collection_grant for a caller that owns the collection. The statement's arguments
/// are the collection, the role and the privileges.
fn change_grants(
    function: &CStr,
    collection: Option<&str>,
    role: Option<&str>,
    privilege: Option<&str>,
    statement: &str,
) -> SqlResult<()> {
    let (collection, role) = (given("collection", collection)?, given("role", role)?);
    let privileges = Privilege::parse(given("privilege", privilege)?)?;
    let access = own_collection(&Store::open(function), collection)?;
    access.check_current()?;
    let _user_context = UserContext::of_extension();
    let role = grantee(role)?;
    Spi::connect_mut(|client| {
        access.write_defaults(client)?;
        let arguments = [collection.into(), number(role), names(&privileges).into()];
        client.update(statement, None, &arguments).map(drop).map_err(spi)
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn clip_grant_collection(
    collection: Option<Text<'_>>,
    role: Option<Text<'_>>,
    privilege: default!(Option<Text<'_>>, "'all'"),
) -> SqlResult<()> {
    change_grants(
        c"clip_grant_collection()",
        collection.map(Text::str),
        role.map(Text::str),
        privilege.map(Text::str),
        include_str!("sql/grant.sql"),
    )
}

#[pg_extern(volatile, parallel_unsafe)]
fn clip_revoke_collection(
    collection: Option<Text<'_>>,
    role: Option<Text<'_>>,
    privilege: default!(Option<Text<'_>>, "'all'"),
) -> SqlResult<()> {
    change_grants(
        c"clip_revoke_collection()",
        collection.map(Text::str),
        role.map(Text::str),
        privilege.map(Text::str),
        include_str!("sql/revoke.sql"),
    )
}

#[pg_extern(stable, strict, parallel_restricted)]
fn clip_has_collection_privilege(collection: Text<'_>, privilege: Text<'_>) -> SqlResult<bool> {
    let Text(collection) = collection;
    let Text(privilege) = privilege;
    check_name(collection)?;
    let access = Access::find(&Store::open_to_read(), collection);
    if !access.exists() && !access.is_open_default() {
        return Err(unknown(collection));
    }
    let role = current_role();
    if privilege.eq_ignore_ascii_case("owner") {
        return Ok(access.is_owned_by(role));
    }
    Ok(Privilege::parse(privilege)?.into_iter().all(|privilege| access.allows(role, privilege)))
}
