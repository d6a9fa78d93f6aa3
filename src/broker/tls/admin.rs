//! The operators' view of certificates, on their socket.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::authority::{GATEWAY_VALIDITY, Request, SignError};
use super::facts::timestamp;
use super::pki::Pki;
use super::subject::Subject;
use crate::broker::admin::error;
use crate::broker::deeds::{self, Deeds, NotDone};
use crate::domain::audit::Digest;
use crate::domain::gateway::{GatewayCertificate, GatewayName};
use crate::domain::{Command, Refusal, Timestamp};

/// Asks for the certificate of a gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayRequest {
    /// What the gateway is called.
    pub name: String,
    /// A request for a certificate (PKCS #10, PEM) with the gateway's key.
    pub request: String,
}

/// A gateway's certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GatewayAnswer {
    /// The certificate in PEM.
    pub certificate: String,
    /// The authority that signed it, and the broker's own certificates: PEM.
    pub authority: String,
    /// Its last moment: RFC 3339.
    pub not_after: String,
    /// SHA-256 of it, in hexadecimal digits.
    pub digest: String,
}

/// A gateway's certificate that is good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GatewayEntry {
    /// What the gateway is called.
    pub name: String,
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub certificate: String,
    /// When it was signed, in milliseconds since 1970.
    pub signed_at: u64,
    /// Its end, in milliseconds since 1970.
    pub until: u64,
}

/// Asks that a gateway be let in no more.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// What the gateway is called.
    pub name: String,
    /// SHA-256 of the certificate, also with capitals and colons; all that it
    /// has when absent.
    pub certificate: Option<String>,
}

type Operators = (Arc<Pki>, Deeds);

/// What operators ask about certificates.
pub fn routes(pki: Arc<Pki>, deeds: Deeds) -> Router {
    Router::new()
        .route("/tls/reload", post(reload))
        .route("/tls/gateway-certificate", post(gateway_certificate))
        .route("/gateways", get(list_gateways))
        .route("/gateways/revoke", post(revoke_gateway))
        .with_state((pki, deeds))
}

async fn reload(State((pki, _)): State<Operators>) -> Response {
    match pki.reload().await {
        Ok(expiries) => Json(expiries).into_response(),
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
    }
}

async fn gateway_certificate(State((pki, deeds)): State<Operators>, Json(request): Json<GatewayRequest>) -> Response {
    let name = match GatewayName::new(&request.name) {
        Ok(name) => name,
        Err(cause) => return error(StatusCode::BAD_REQUEST, &cause.to_string()),
    };
    let subject = Subject::Gateway(name.clone());
    let signed = Request::read(request.request.as_bytes())
        .and_then(|request| pki.authority().sign_client(&request, &subject, SystemTime::now(), GATEWAY_VALIDITY));
    let signed = match signed {
        Ok(signed) => signed,
        Err(cause @ SignError::Make(_)) => return error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
        Err(cause) => return error(StatusCode::BAD_REQUEST, &cause.to_string()),
    };
    let not_after = timestamp(signed.not_after).to_string();
    // It is good for nothing until the log knows it.
    let certificate = Digest::of(&signed.certificate);
    let deed = deeds.deed(deeds::GATEWAY_CERTIFICATE, format!("{name} until {not_after}, SHA-256 {certificate}"));
    let until = Timestamp(u64::try_from(timestamp(signed.not_after).as_millisecond()).unwrap_or_default());
    let command = Command::CertifyGateway { gateway: name.clone(), certificate, until };
    match deeds::carry_out(deeds.broker(), deed, command).await {
        Ok(()) => {}
        Err(cause @ NotDone::Unavailable(_)) => {
            let text = format!(
                "{cause}; no certificate is given out that the cluster does not know. If `berth gateways list` \
                 shows one all the same, revoke it: nobody has it"
            );
            return error(StatusCode::SERVICE_UNAVAILABLE, &text);
        }
        Err(cause) => return not_done(&cause),
    }
    tracing::info!(gateway = %name, not_after, "certificate signed for a gateway");
    let authority = pki.authority().pem().to_owned();
    Json(GatewayAnswer { certificate: signed.pem, authority, not_after, digest: certificate.to_string() })
        .into_response()
}

async fn list_gateways(State((_, deeds)): State<Operators>) -> Json<Vec<GatewayEntry>> {
    let (fleet, now) = (deeds.broker().fleet(), deeds.broker().now());
    let entry = |known: &GatewayCertificate| GatewayEntry {
        name: known.gateway.as_str().to_owned(),
        certificate: known.digest.to_string(),
        signed_at: known.signed_at.0,
        until: known.until.0,
    };
    let mut known: Vec<_> = fleet.gateway_certificates().filter(|known| known.until > now).map(entry).collect();
    known.sort_by(|one, other| (&one.name, one.until).cmp(&(&other.name, other.until)));
    Json(known)
}

async fn revoke_gateway(State((_, deeds)): State<Operators>, Json(request): Json<RevokeRequest>) -> Response {
    let gateway = match GatewayName::new(&request.name) {
        Ok(gateway) => gateway,
        Err(cause) => return error(StatusCode::BAD_REQUEST, &cause.to_string()),
    };
    let certificate = match request.certificate.as_deref().map(fingerprint).transpose() {
        Ok(certificate) => certificate,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    };
    let target = match &certificate {
        Some(certificate) => format!("{gateway}, SHA-256 {certificate}"),
        None => gateway.to_string(),
    };
    let deed = deeds.deed(deeds::REVOKE_GATEWAY, target);
    match deeds::carry_out(deeds.broker(), deed, Command::RevokeGateway { gateway, certificate }).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(cause) => not_done(&cause),
    }
}

/// A digest as `openssl x509 -fingerprint -sha256` prints it, or as it is here.
fn fingerprint(text: &str) -> Result<Digest, String> {
    text.replace(':', "").to_ascii_lowercase().parse()
}

fn not_done(cause: &NotDone) -> Response {
    let status = match cause {
        NotDone::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        NotDone::Refused(Refusal::UnknownGateway) => StatusCode::NOT_FOUND,
        NotDone::Refused(_) => StatusCode::CONFLICT,
    };
    error(status, &cause.to_string())
}
