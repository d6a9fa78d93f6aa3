//! Hashes of client secrets: Argon2id, made and checked by one thread that
//! owns the memory this takes.
//!
//! Hashing costs memory and time by intention. One thread bounds both: what
//! waits is bounded, whoever hangs up leaves nothing running but the check
//! under way, and the memory is taken once instead of from whichever part of
//! the allocator a pool's thread happens to use.

use std::sync::mpsc::{self, SyncSender, TrySendError};

use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;

use crate::secret::Secret;

/// Jobs that may wait; more are told to come back.
const WAITING_MAX: usize = 64;

/// Cost: 7 MiB and five passes, which OWASP's password storage cheat sheet
/// holds for as strong as 19 MiB and two. The secrets are 256 random bits anyway.
const MEMORY_KIB: u32 = 7 * 1024;
const PASSES: u32 = 5;
const LANES: u32 = 1;
/// Most memory that a stored hash may ask for.
const MEMORY_KIB_MAX: u32 = 64 * 1024;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// A hash of the usual cost that no secret has: checked for clients that do
/// not exist, so that the time of an answer does not tell which do.
const DECOY: &str = "$argon2id$v=19$m=7168,t=5,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckError {
    /// As many wait as may.
    #[error("too many secrets wait to be checked")]
    Busy,
    /// Hashing failed, or its thread is gone.
    #[error("secrets cannot be hashed")]
    Failed,
}

enum Job {
    Hash { secret: Secret, reply: oneshot::Sender<Result<String, CheckError>> },
    Check { secret: Secret, hashes: Vec<String>, reply: oneshot::Sender<Result<bool, CheckError>> },
}

/// The thread's handle; the thread ends with the last one.
pub(super) struct Secrets(SyncSender<Job>);

impl Secrets {
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("secrets".to_owned()).spawn(move || {
            let mut memory = Vec::new();
            for job in waiting {
                // Whoever asked may have hung up.
                match job {
                    Job::Hash { reply, .. } if reply.is_closed() => {}
                    Job::Check { reply, .. } if reply.is_closed() => {}
                    Job::Hash { secret, reply } => {
                        let _ = reply.send(hash(&secret, &mut memory));
                    }
                    Job::Check { secret, hashes, reply } => {
                        let _ = reply.send(check_any(&secret, &hashes, &mut memory));
                    }
                }
            }
        })?;
        Ok(Self(jobs))
    }

    /// The hash of a secret, in PHC text form.
    pub(super) async fn hash(&self, secret: Secret) -> Result<String, CheckError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Hash { secret, reply })?;
        answer.await.unwrap_or(Err(CheckError::Failed))
    }

    /// Whether a secret has one of some hashes; they are tried in this order.
    /// Without a hash the answer is no, after the time that one takes.
    pub(super) async fn check(&self, secret: Secret, hashes: Vec<String>) -> Result<bool, CheckError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Check { secret, hashes, reply })?;
        answer.await.unwrap_or(Err(CheckError::Failed))
    }

    fn send(&self, job: Job) -> Result<(), CheckError> {
        self.0.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => CheckError::Busy,
            TrySendError::Disconnected(_) => CheckError::Failed,
        })
    }
}

fn hash(secret: &Secret, memory: &mut Vec<Block>) -> Result<String, CheckError> {
    let failed = |_| CheckError::Failed;
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(HASH_BYTES)).map_err(failed)?;
    let mut salt = [0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| CheckError::Failed)?;
    let mut out = [0; HASH_BYTES];
    run(&params, secret, &salt, &mut out, memory)?;
    Ok(format!(
        "$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${}${}",
        STANDARD_NO_PAD.encode(salt),
        STANDARD_NO_PAD.encode(out)
    ))
}

fn check_any(secret: &Secret, hashes: &[String], memory: &mut Vec<Block>) -> Result<bool, CheckError> {
    if hashes.is_empty() {
        return check(secret, DECOY, memory).map(|_| false);
    }
    for hash in hashes {
        if check(secret, hash, memory)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn check(secret: &Secret, hash: &str, memory: &mut Vec<Block>) -> Result<bool, CheckError> {
    let stored = PasswordHash::new(hash).map_err(|_| CheckError::Failed)?;
    let params = Params::try_from(&stored).map_err(|_| CheckError::Failed)?;
    let (Some(salt), Some(expected)) = (&stored.salt, &stored.hash) else { return Err(CheckError::Failed) };
    if stored.algorithm != argon2::ARGON2ID_IDENT || params.m_cost() > MEMORY_KIB_MAX {
        return Err(CheckError::Failed);
    }
    let mut out = vec![0; expected.as_bytes().len()];
    run(&params, secret, salt, &mut out, memory)?;
    Ok(out.ct_eq(expected.as_bytes()).into())
}

fn run(
    params: &Params,
    secret: &Secret,
    salt: &[u8],
    out: &mut [u8],
    memory: &mut Vec<Block>,
) -> Result<(), CheckError> {
    let blocks = params.block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::default());
    }
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
        .hash_password_into_with_memory(secret.expose().as_bytes(), salt, out, &mut memory[..blocks])
        .map_err(|_| CheckError::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_secret_has_its_own_hash_and_no_other() {
        let secrets = Secrets::start().expect("a thread");
        let first = secrets.hash(secret("one")).await.expect("hashed");
        let second = secrets.hash(secret("one")).await.expect("hashed");
        assert_ne!(first, second, "the salt is random");
        assert_eq!(secrets.check(secret("one"), vec![first.clone()]).await, Ok(true));
        assert_eq!(secrets.check(secret("one"), vec![first.clone(), second]).await, Ok(true));
        assert_eq!(secrets.check(secret("two"), vec![first]).await, Ok(false));
        assert_eq!(secrets.check(secret("one"), Vec::new()).await, Ok(false));
        assert_eq!(secrets.check(secret("one"), vec!["no hash".to_owned()]).await, Err(CheckError::Failed));
    }

    #[test]
    fn hashes_are_read_by_the_library_that_others_use() {
        use argon2::PasswordVerifier;
        let hash = hash(&secret("one"), &mut Vec::new()).expect("hashed");
        assert!(Argon2::default().verify_password(b"one", hash.as_str()).is_ok());
        assert!(Argon2::default().verify_password(b"two", hash.as_str()).is_err());
    }

    #[test]
    fn the_decoy_costs_as_much_as_a_hash() {
        let decoy = PasswordHash::new(DECOY).expect("valid");
        let params = Params::try_from(&decoy).expect("valid");
        assert_eq!((params.m_cost(), params.t_cost(), params.p_cost()), (MEMORY_KIB, PASSES, LANES));
        assert_eq!(check(&secret("anything"), DECOY, &mut Vec::new()), Ok(false));
    }

    #[test]
    fn a_hash_that_asks_for_too_much_memory_is_refused() {
        let greedy = DECOY.replace("m=7168", "m=4194304");
        assert_eq!(check(&secret("x"), &greedy, &mut Vec::new()), Err(CheckError::Failed));
    }
}
