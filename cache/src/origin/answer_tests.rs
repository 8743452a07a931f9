//! Claims about what answers mean.

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

fn known() -> Validator {
    Validator { etag: Some("\"abc\"".into()), modified_ms: Some(784_111_777_400) }
}

fn ask(status: u16, pairs: &[(&'static str, &str)]) -> Result<(), OriginError> {
    ranged("p", StatusCode::from_u16(status).unwrap(), &headers(pairs), &(10..20), 100, &known())
}

#[test]
fn a_right_part_is_taken_even_with_status_200() {
    for status in [200, 206] {
        let pairs = [("content-range", "bytes 10-19/100"), ("content-length", "10"), ("etag", "\"abc\"")];
        assert_eq!(ask(status, &pairs), Ok(()));
    }
}

#[test]
fn the_whole_object_instead_of_a_part_is_told_apart_from_another_object() {
    assert!(matches!(ask(200, &[("content-length", "100")]), Err(OriginError::RangeIgnored { .. })));
    assert!(matches!(ask(200, &[("content-length", "99")]), Err(OriginError::Changed { .. })));
    assert!(matches!(ask(200, &[("etag", "\"x\"")]), Err(OriginError::Changed { .. })));
}

#[test]
fn another_size_etag_or_date_is_a_change() {
    assert!(matches!(ask(206, &[("content-range", "bytes 10-19/101")]), Err(OriginError::Changed { .. })));
    let other = [("content-range", "bytes 10-19/100"), ("etag", "\"abd\"")];
    assert!(matches!(ask(206, &other), Err(OriginError::Changed { .. })));
    let later = [("content-range", "bytes 10-19/100"), ("last-modified", "Sun, 06 Nov 1994 08:49:39 GMT")];
    assert!(matches!(ask(206, &later), Err(OriginError::Changed { .. })));
    assert!(matches!(ask(416, &[("content-range", "bytes */5")]), Err(OriginError::Changed { .. })));
}

#[test]
fn etags_are_compared_without_quotes_and_weakness_and_decide_over_dates() {
    for etag in ["\"abc\"", "abc", "W/\"abc\""] {
        let pairs =
            [("content-range", "bytes 10-19/*"), ("etag", etag), ("last-modified", "Sun, 06 Nov 2005 08:49:39 GMT")];
        assert_eq!(ask(206, &pairs), Ok(()), "{etag}");
    }
}

#[test]
fn a_listed_fraction_of_a_second_is_no_change() {
    for date in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"] {
        assert_eq!(ask(206, &[("content-range", "bytes 10-19/100"), ("last-modified", date)]), Ok(()), "{date}");
    }
}

#[test]
fn wrong_parts_wrong_lengths_and_compressed_bodies_are_refused() {
    assert!(matches!(ask(206, &[("content-range", "bytes 0-9/100")]), Err(OriginError::BadAnswer { .. })));
    assert!(matches!(ask(206, &[]), Err(OriginError::BadAnswer { .. })));
    assert!(matches!(
        ask(206, &[("content-range", "bytes 10-18446744073709551615/100")]),
        Err(OriginError::BadAnswer { .. })
    ));
    let short = [("content-range", "bytes 10-19/100"), ("content-length", "9")];
    assert_eq!(ask(206, &short), Err(OriginError::Truncated { path: "p".into(), got: 9, want: 10 }));
    let long = [("content-range", "bytes 10-19/100"), ("content-length", "11")];
    assert_eq!(ask(206, &long), Err(OriginError::TooLong { path: "p".into(), want: 10 }));
    let gzip = [("content-range", "bytes 10-19/100"), ("content-encoding", "gzip")];
    assert!(matches!(ask(206, &gzip), Err(OriginError::BadAnswer { .. })));
}

#[test]
fn a_wait_is_read_as_seconds_or_against_the_origins_own_clock() {
    assert_eq!(retry_after(&headers(&[("retry-after", "7")]), 0), Some(Duration::from_secs(7)));
    let date = ("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT");
    let own = headers(&[date, ("date", "Sun, 06 Nov 1994 08:49:37 GMT")]);
    assert_eq!(retry_after(&own, 0), Some(Duration::from_secs(10)));
    assert_eq!(retry_after(&headers(&[date]), 784_111_786_000), Some(Duration::from_secs(1)));
    assert_eq!(retry_after(&headers(&[date]), 784_111_999_000), Some(Duration::ZERO));
    assert_eq!(retry_after(&headers(&[("retry-after", "soon")]), 0), None);
}

#[test]
fn statuses_mean_what_the_engine_acts_on() {
    let means = |status: u16, code: Option<&str>| {
        failure("p", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), code, 0)
    };
    assert!(matches!(means(404, Some("NoSuchKey")), OriginError::NotFound { .. }));
    assert!(matches!(means(404, Some("NoSuchBucket")), OriginError::Denied { .. }));
    assert!(matches!(means(403, Some("InvalidAccessKeyId")), OriginError::Denied { .. }));
    assert!(matches!(means(400, Some("ExpiredToken")), OriginError::Denied { .. }));
    assert!(matches!(means(412, None), OriginError::Changed { .. }));
    assert!(matches!(means(503, Some("SlowDown")), OriginError::Throttled { .. }));
    assert!(matches!(means(429, None), OriginError::Throttled { .. }));
    assert!(matches!(means(500, None), OriginError::Server { .. }));
    assert!(matches!(means(501, None), OriginError::Refused { .. }));
    assert!(matches!(means(405, None), OriginError::Refused { .. }));
}

#[test]
fn a_wrong_region_is_said() {
    let headers = headers(&[("x-amz-bucket-region", "eu-west-1")]);
    let error = failure("p", StatusCode::MOVED_PERMANENTLY, &headers, Some("PermanentRedirect"), 0);
    assert!(error.to_string().contains("the bucket is in region eu-west-1"), "{error}");
}

#[test]
fn only_a_plain_code_is_repeated_from_a_body() {
    assert_eq!(s3_code(b"<Error><Code>NoSuchKey</Code><Message>x</Message>").as_deref(), Some("NoSuchKey"));
    assert_eq!(s3_code(b"<Code>a b\n</Code>"), None);
    assert_eq!(s3_code(b"<html>"), None);
}
