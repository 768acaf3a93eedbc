//! The body of a request, read whole under a limit. It does not know what is in it.

use crate::status::ApiError;
use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// The longest body of a request, in bytes: 3 MiB, as kube-apiserver's.
pub const REQUEST_BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// What is read, and thrown away, of a body beyond the limit. A client on HTTP/1.1 reads the answer only when it has sent
/// its body; if the connection closes while it sends, it sees that, and not the answer.
const REFUSED_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 for a longer body, 415 for a compressed one, 400 when it ends early.
pub async fn read_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let encoding = headers.get(CONTENT_ENCODING).map(|v| v.as_bytes());
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        let code = StatusCode::UNSUPPORTED_MEDIA_TYPE.as_u16();
        return Err(ApiError::new(
            code,
            "UnsupportedMediaType",
            "the body of the request must not be compressed: Content-Encoding is not supported",
        ));
    }
    let too_large = || ApiError::request_entity_too_large(format!("limit is {limit}"));
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<u64>().ok());
    let mut body = body;
    if announced.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > limit)) {
        discard(&mut body).await;
        return Err(too_large());
    }
    match Limited::new(&mut body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(&mut body).await;
            Err(too_large())
        }
        Err(error) => Err(ApiError::bad_request(format!(
            "unable to read the body of the request: {error}"
        ))),
    }
}

/// Reads what is left of a body that is refused, as far as that is worth it.
async fn discard(body: &mut Body) {
    let mut left = REFUSED_BODY_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http::HeaderValue;

    async fn check(
        headers: &[(&'static str, &'static str)],
        chunks: &[&'static str],
        expect: Result<&str, u16>,
    ) {
        let headers = headers
            .iter()
            .map(|(k, v)| (http::HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect();
        let chunks: Vec<std::io::Result<&'static str>> = chunks
            .iter()
            .map(|c| {
                if *c == "!" {
                    Err(std::io::Error::other("cut"))
                } else {
                    Ok(*c)
                }
            })
            .collect();
        let body = read_body(&headers, Body::from_stream(stream::iter(chunks)), 8).await;
        let body = body
            .map_err(|e| e.code)
            .map(|b| String::from_utf8_lossy(&b).into_owned());
        assert_eq!(body.as_deref().map_err(|e| *e), expect);
    }

    #[tokio::test]
    async fn limits() {
        check(&[], &[], Ok("")).await;
        check(&[], &["1234", "5678"], Ok("12345678")).await;
        check(&[], &["1234", "56789"], Err(413)).await;
        check(&[("content-length", "9")], &["123456789"], Err(413)).await;
        check(&[("content-length", "9")], &["12", "!"], Err(413)).await;
        check(&[("content-length", "99999999999999999999999")], &["1"], Ok("1")).await;
        check(&[("content-encoding", "gzip")], &["x"], Err(415)).await;
        check(&[("content-encoding", "Identity")], &["x"], Ok("x")).await;
        check(&[], &["123", "!"], Err(400)).await;
    }
}
