//! Where transactions are written down.
//!
//! Two kinds of records: the **record** of a transaction that a client named lists the leases that take part; the
//! **pointer** of one that acquire made an id up for says which lease that is, so that a client can join it later.
//!
//! Where a batch changes several records, each transaction has a record of its own, which goes with its last member. Where
//! a batch changes one record, as in object stores, transactions share a fixed number of **pages**: deleting a record
//! whose name may come again (a client may use a transaction id twice) would need a conditional deletion there, which not
//! all of these stores have. A page is never deleted, so there is nothing to race with.

use std::sync::Arc;

use crate::error::Error;
use crate::ids::Xid;
use crate::keys::{self, POINTER_PREFIX, TXN_PREFIX};
use crate::record::{
    DecodeError, Participant, TxnPage, TxnRecord, decode_txn, decode_txn_page, encode_txn, encode_txn_page,
};
use crate::store::{Change, Etag, Precondition, RecordKey, RecordWrite, Store, Stored};

/// Reads transactions, and says what to write to change one.
pub struct TxnBook {
    store: Arc<dyn Store>,
    in_pages: bool,
}

/// A transaction as read, with what is needed to write it back.
#[derive(Debug, Clone)]
pub struct Entry {
    txn_id: Xid,
    record: Option<TxnRecord>,
    etag: Option<Etag>,
    /// The other transactions of its page.
    others: TxnPage,
}

/// A part of what is written down.
pub struct Page {
    /// Transactions, and records that cannot be read.
    pub noted: Vec<Result<Noted, Error>>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<RecordKey>,
}

/// What is written down of one transaction.
#[derive(Debug, Clone)]
pub struct Noted {
    /// Its id.
    pub txn_id: Xid,
    /// Its members.
    pub record: TxnRecord,
    /// This is the pointer of an id that acquire made up.
    pub is_pointer: bool,
}

impl Entry {
    /// No record and no members are the same.
    fn is_changed_by(&self, record: &TxnRecord) -> bool {
        match &self.record {
            Some(before) => before != record,
            None => !record.participants.is_empty(),
        }
    }

    /// Which transaction.
    pub fn txn_id(&self) -> &Xid {
        &self.txn_id
    }

    /// What is known of the transaction, if anything.
    pub fn record(&self) -> Option<&TxnRecord> {
        self.record.as_ref()
    }
}

impl TxnBook {
    /// The book of this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let in_pages = !store.capabilities().atomic_batch;
        Self { store, in_pages }
    }

    /// Reads a transaction.
    pub fn read(&self, txn_id: &Xid) -> Result<Entry, Error> {
        let key = self.key(txn_id);
        let mut entry = Entry {
            txn_id: txn_id.clone(),
            record: None,
            etag: None,
            others: TxnPage::new(),
        };
        if let Some(stored) = self.store.read(&key)? {
            if self.in_pages {
                entry.others = decode_txn_page(&stored.value).map_err(|cause| corrupt(&key, cause))?;
                entry.record = entry.others.remove(txn_id);
            } else {
                entry.record = Some(decode_txn(&stored.value).map_err(|cause| corrupt(&key, cause))?);
            }
            entry.etag = Some(stored.etag);
        }
        Ok(entry)
    }

    /// What to write so that transactions become these; one that nobody takes part in any more goes. They are written only
    /// if nobody has changed them since they were read. What stays as it is is not written.
    pub fn writes_of(&self, changes: &[(Entry, TxnRecord)]) -> Vec<RecordWrite> {
        let mut writes: Vec<RecordWrite> = Vec::new();
        for (entry, _) in changes.iter().filter(|(entry, record)| entry.is_changed_by(record)) {
            let key = self.key(&entry.txn_id);
            if writes.iter().any(|write| write.key == key) {
                continue;
            }
            // All that lie on one page go together.
            let mut page = entry.others.clone();
            for (other, record) in changes.iter().filter(|(other, _)| self.key(&other.txn_id) == key) {
                page.remove(&other.txn_id);
                if !record.participants.is_empty() {
                    page.insert(other.txn_id.clone(), record.clone());
                }
            }
            let change = match page.values().next() {
                _ if self.in_pages => Change::Put(encode_txn_page(&page)),
                Some(record) => Change::Put(encode_txn(record)),
                None => Change::Delete,
            };
            let precondition = entry.etag.clone().map_or(Precondition::Absent, Precondition::Matches);
            writes.push(RecordWrite {
                key,
                precondition,
                change,
            });
        }
        writes
    }

    /// The lease that this transaction id was made up for, unless it has ended.
    pub fn pointer(&self, txn_id: &Xid) -> Result<Option<Participant>, Error> {
        let key = keys::txn_pointer(txn_id);
        match self.store.read(&key)? {
            Some(stored) => Ok(read_pointer(&key, &stored)?.participants.pop()),
            None => Ok(None),
        }
    }

    /// What to write when acquire has made up a transaction id for a lease.
    pub fn pointer_write(&self, txn_id: &Xid, member: Participant) -> RecordWrite {
        RecordWrite {
            key: keys::txn_pointer(txn_id),
            precondition: Precondition::Absent,
            change: Change::Put(encode_txn(&TxnRecord {
                participants: vec![member],
                decision: None,
            })),
        }
    }

    /// What to write when such a lease has ended, or its transaction has become one of several. The id was made up for this
    /// lease alone, so it does not matter who else is at it.
    pub fn pointer_end(&self, txn_id: &Xid) -> RecordWrite {
        RecordWrite {
            key: keys::txn_pointer(txn_id),
            precondition: Precondition::Any,
            change: Change::Delete,
        }
    }

    /// Calls `visit` with everything that is written down, until it says stop by returning false. What comes and goes
    /// meanwhile may be seen or not.
    pub fn for_each(&self, mut visit: impl FnMut(Noted) -> Result<bool, Error>) -> Result<(), Error> {
        const PAGE_ROWS: usize = 256;
        let mut after = None;
        loop {
            let page = self.page(after.as_ref(), PAGE_ROWS)?;
            for noted in page.noted {
                if !visit(noted?)? {
                    return Ok(());
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// What is written down in up to `limit` records, from the beginning or from where another page ended.
    pub fn page(&self, after: Option<&RecordKey>, limit: usize) -> Result<Page, Error> {
        let prefix = match after {
            Some(after) if after.as_str().starts_with(TXN_PREFIX) => TXN_PREFIX,
            _ => POINTER_PREFIX,
        };
        let rows = self.store.list(prefix, after, limit)?;
        let mut page = Page {
            noted: Vec::with_capacity(rows.len()),
            next: None,
        };
        for row in &rows {
            let Some(stored) = self.store.read(&row.key)? else {
                continue;
            };
            match self.transactions_in(&row.key, &stored) {
                Ok(transactions) => page.noted.extend(transactions.into_iter().map(|(txn_id, record)| {
                    Ok(Noted {
                        is_pointer: prefix == POINTER_PREFIX,
                        txn_id,
                        record,
                    })
                })),
                Err(cause) => page.noted.push(Err(cause)),
            }
        }
        page.next = match rows.last() {
            Some(last) if limit <= rows.len() => Some(last.key.clone()),
            _ if prefix == POINTER_PREFIX => Some(RecordKey::new(TXN_PREFIX)),
            _ => None,
        };
        Ok(page)
    }

    fn transactions_in(&self, key: &RecordKey, stored: &Stored) -> Result<TxnPage, Error> {
        let (is_pointer, name) = match key.as_str().split_once('/') {
            Some(("p", name)) => (true, name),
            Some((_, name)) => (false, name),
            None => return Ok(TxnPage::new()),
        };
        if self.in_pages && !is_pointer {
            return decode_txn_page(&stored.value).map_err(|cause| corrupt(key, cause));
        }
        // Nothing else is written under these prefixes.
        let Some(txn_id) = Xid::parse(name) else {
            return Ok(TxnPage::new());
        };
        Ok(TxnPage::from([(txn_id, read_pointer(key, stored)?)]))
    }

    fn key(&self, txn_id: &Xid) -> RecordKey {
        if self.in_pages {
            keys::txn_page(txn_id)
        } else {
            keys::txn_record(txn_id)
        }
    }
}

fn read_pointer(key: &RecordKey, stored: &Stored) -> Result<TxnRecord, Error> {
    decode_txn(&stored.value).map_err(|cause| corrupt(key, cause))
}

fn corrupt(key: &RecordKey, cause: DecodeError) -> Error {
    Error::CorruptRecord {
        key: key.clone(),
        cause,
    }
}
