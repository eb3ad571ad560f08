"""HTTP in front of the model: `POST /classify`, KServe V2 REST, the OpenAPI document and a page."""
