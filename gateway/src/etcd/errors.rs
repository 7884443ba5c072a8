//! etcd's error texts and codes. Clients match the strings.

use crate::call::CallError;
use shardkv::request::OpError;
use tonic::{Code, Status};

/// An error of etcd's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EtcdError {
    pub(crate) code: Code,
    pub(crate) text: &'static str,
}

const fn error(code: Code, text: &'static str) -> EtcdError {
    EtcdError { code, text }
}

pub(crate) const EMPTY_KEY: EtcdError = error(Code::InvalidArgument, "etcdserver: key is not provided");
pub(crate) const KEY_NOT_FOUND: EtcdError = error(Code::InvalidArgument, "etcdserver: key not found");
pub(crate) const VALUE_PROVIDED: EtcdError = error(Code::InvalidArgument, "etcdserver: value is provided");
pub(crate) const LEASE_PROVIDED: EtcdError = error(Code::InvalidArgument, "etcdserver: lease is provided");
pub(crate) const TOO_MANY_OPS: EtcdError =
    error(Code::InvalidArgument, "etcdserver: too many operations in txn request");
pub(crate) const DUPLICATE_KEY: EtcdError =
    error(Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
pub(crate) const INVALID_SORT: EtcdError = error(Code::InvalidArgument, "etcdserver: invalid sort option");
// etcd has no error for this: it takes an unknown result or target for some other one.
pub(crate) const INVALID_COMPARE: EtcdError = error(Code::InvalidArgument, "etcdserver: invalid compare option");
pub(crate) const REQUEST_TOO_LARGE: EtcdError = error(Code::InvalidArgument, "etcdserver: request is too large");
pub(crate) const COMPACTED: EtcdError =
    error(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
pub(crate) const FUTURE_REVISION: EtcdError =
    error(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
pub(crate) const NO_SPACE: EtcdError = error(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
pub(crate) const TOO_MANY_REQUESTS: EtcdError = error(Code::ResourceExhausted, "etcdserver: too many requests");
pub(crate) const LEASE_NOT_FOUND: EtcdError = error(Code::NotFound, "etcdserver: requested lease not found");
pub(crate) const TIMED_OUT: EtcdError = error(Code::Unavailable, "etcdserver: request timed out");
pub(crate) const AUTH_NOT_ENABLED: EtcdError =
    error(Code::FailedPrecondition, "etcdserver: authentication is not enabled");

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Status {
        Status::new(error.code, error.text)
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Status {
        match error {
            CallError::Failed(OpError::Compacted { .. }) => COMPACTED.into(),
            CallError::Failed(OpError::FutureRevision { .. }) => FUTURE_REVISION.into(),
            CallError::Failed(OpError::TooLarge) => REQUEST_TOO_LARGE.into(),
            CallError::Failed(OpError::KeyNotFound) => KEY_NOT_FOUND.into(),
            CallError::Failed(OpError::LeaseNotFound) => LEASE_NOT_FOUND.into(),
            CallError::Failed(OpError::Overloaded) | CallError::Overloaded => TOO_MANY_REQUESTS.into(),
            CallError::Failed(OpError::NoSpace) => NO_SPACE.into(),
            CallError::Failed(OpError::SessionExpired) | CallError::Unavailable { .. } => TIMED_OUT.into(),
            CallError::Failed(OpError::Malformed(text)) => Status::internal(format!("cloudpaxos: {text}")),
            CallError::AnswerTooLarge { .. } => Status::resource_exhausted(format!("cloudpaxos: {error}")),
            CallError::Unimplemented(text) => Status::unimplemented(text),
        }
    }
}
