use super::*;

/// Sends a request to the API of the Hub as the worker does, without a signature.
async fn ask_hub(case: &Case, method: &str, target: &str, range: Option<&str>) -> Answer {
    let mut headers = vec![("host".to_owned(), HOST.to_owned())];
    headers.extend(range.map(|range| ("range".to_owned(), range.to_owned())));
    let mut request = request(method, target, headers, &[&case.reading(), &case.writing()], full(b""));
    request.headers_mut().remove(SECRET_KEY);
    case.send(request).await
}

// A holder finds the repositories, revisions and files of its lease, in the form that the Hub's clients need.
#[tokio::test]
async fn the_hub_shows_what_a_lease_opens() {
    let case = Case::new().await;
    let json = async |target: &str| {
        let answer = ask_hub(&case, "GET", target, None).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text);
        serde_json::from_str::<serde_json::Value>(&answer.text).unwrap()
    };
    let info = json("/_hub/api/datasets/acme/tickets").await;
    let commit = info["sha"].as_str().unwrap().to_owned();
    let names: Vec<&str> =
        info["siblings"].as_array().unwrap().iter().map(|s| s["rfilename"].as_str().unwrap()).collect();
    assert_eq!((info["id"].as_str(), commit.len()), (Some("acme/tickets"), 40));
    assert_eq!(names, ["a.txt", "large", "train/part 1.txt", "train/part-2.txt"], "links are not followed");
    for revision in ["v3", "main", commit.as_str()] {
        let same = json(&format!("/_hub/api/datasets/acme/tickets/revision/{revision}")).await;
        assert_eq!(same["sha"], commit.as_str());
    }
    let tree = json("/_hub/api/datasets/acme/tickets/tree/main/train?recursive=false").await;
    assert_eq!((tree[0]["path"].as_str(), tree[0]["size"].as_u64()), (Some("train/part 1.txt"), Some(10)));

    let file = "/_hub/datasets/acme/tickets/resolve/main/train/part%201.txt";
    let head = ask_hub(&case, "HEAD", file, None).await;
    assert_eq!((head.status, &head.headers["x-repo-commit"]), (200, &commit.parse().unwrap()));
    assert_eq!((&head.headers["content-length"], head.text.as_str()), (&"10".parse().unwrap(), ""));
    let whole = ask_hub(&case, "GET", file, None).await;
    assert_eq!((whole.text.as_str(), &whole.headers["etag"]), ("0123456789", &head.headers["etag"]));
    let part = ask_hub(&case, "GET", file, Some("bytes=2-4")).await;
    assert_eq!((part.status, part.text.as_str()), (206, "234"));
    assert_eq!(part.headers["content-range"], "bytes 2-4/10");
    let model = ask_hub(&case, "GET", "/_hub/acme/base-7b/resolve/2026.10/config.json", None).await;
    assert_eq!(model.text, "{}");
}

// A file that the lease does not open gets the same answer as one that does not exist, and nothing is written.
#[tokio::test]
async fn the_hub_opens_nothing_beyond_the_lease() {
    let case = Case::new().await;
    let refused = async |method: &str, target: &str| {
        let answer = ask_hub(&case, method, target, None).await;
        let code = answer.headers.get("x-error-code").map(|v| v.to_str().unwrap().to_owned());
        (answer.status, code.unwrap_or_default(), answer.text)
    };
    let foreign = refused("GET", "/_hub/api/datasets/acme/secret").await;
    let absent = refused("GET", "/_hub/api/datasets/acme/nothing").await;
    assert_eq!((foreign.0, foreign.1.as_str()), (404, "RepoNotFound"));
    assert_eq!(foreign.2.replace("secret", "nothing"), absent.2);
    for (target, code) in [
        ("/_hub/api/datasets/acme/tickets/revision/v4", "RevisionNotFound"),
        ("/_hub/datasets/acme/tickets/resolve/main/absent", "EntryNotFound"),
        ("/_hub/datasets/acme/tickets/resolve/main/..%2Fds-secret%2Fx", "EntryNotFound"),
        ("/_hub/datasets/acme/tickets/resolve/main/%2e%2e/ds-secret/x", "EntryNotFound"),
        ("/_hub/datasets/acme/tickets/resolve/main/link", "EntryNotFound"),
        ("/_hub/datasets/acme/tickets/resolve/main/links/x", "EntryNotFound"),
        ("/_hub/api/datasets/acme/tickets/tree/main/absent", "EntryNotFound"),
        ("/_hub/acme/support-lora/resolve/main/x", "RepoNotFound"),
        ("/_hub/api/agent-harnesses", "EntryNotFound"),
    ] {
        let (status, found, text) = refused("GET", target).await;
        assert_eq!((status, found.as_str()), (404, code), "{target}: {text}");
    }
    assert_eq!(refused("POST", "/_hub/api/datasets/acme/tickets").await.0, 405);
    let mut without = request("GET", "/_hub/api/datasets/acme/tickets", Vec::new(), &[], full(b""));
    without.headers_mut().remove(SECRET_KEY);
    assert_eq!(case.send(without).await.status, 403, "a request needs a token");
}

// A revocation cuts a download of the Hub's clients in the middle, and the next request shows the reason.
#[tokio::test]
async fn a_revocation_cuts_a_download_of_the_hub() {
    let case = Case::new().await;
    let target = "/_hub/datasets/acme/tickets/resolve/main/large";
    let token = case.reading();
    let mut client = case.client("/worker").await;
    let response =
        client.send_request(request("GET", target, Vec::new(), &[&token], full(b""))).await.unwrap();
    assert_eq!(response.headers()["content-length"], LARGE.to_string().as_str());
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    case.lowering.lower(FenceName::job(JOB));
    let is_cut = loop {
        match body.frame().await {
            Some(Ok(_)) => {}
            Some(Err(_)) => break true,
            None => break false,
        }
    };
    assert!(is_cut, "a clean end would look like the whole file");
    let answer = ask_hub(&case, "HEAD", target, None).await;
    assert_eq!((answer.status, &answer.headers["x-error-code"]), (403, &"GatedRepo".parse().unwrap()));
    let shown = answer.headers["x-error-message"].to_str().unwrap();
    assert!(shown.starts_with("REVOKED: "), "{shown}");
}
